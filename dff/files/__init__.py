"""Jobs on files: what the commands read, align, label and write."""
