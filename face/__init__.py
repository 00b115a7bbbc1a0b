"""What a face is and how it makes an image: geometry, light and descriptors, without effects."""
