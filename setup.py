"""Where the packages lie. Everything else about the distribution is in pyproject.toml.

The rooms stand at the top of the tree and are installed under ``dff``: ``face/`` as ``dff.face``.
On PyPI, ``face`` is another project.
"""

from setuptools import find_namespace_packages, setup

ROOMS = ("face", "infra", "pipeline", "trainer", "aligner")
FOLDERS = {"dff": "dff"} | {f"dff.{room}": room for room in ROOMS}

setup(
    package_dir=FOLDERS,
    packages=[
        name
        for package, folder in FOLDERS.items()
        for name in (
            package,
            *(
                f"{package}.{sub}"
                for sub in find_namespace_packages(folder, exclude=("docker", "k8s"))
            ),
        )
    ],
)
