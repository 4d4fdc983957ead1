"""What pyproject.toml cannot say of wheels."""

import setuptools
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py


class PlatformWheel(bdist_wheel):
    """One wheel a platform: the compiled library is loaded by ctypes, and so serves every Python."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


class Modules(build_py):
    """All modules but `sieve_kernels/setup.py`, which builds the kernels alone."""

    def find_package_modules(self, package: str, package_dir: str) -> list[tuple[str, str, str]]:
        return [one for one in super().find_package_modules(package, package_dir) if one[1] != "setup"]


class Distribution(setuptools.Distribution):
    """An editable install puts data files (`sieve_start.pth`) in their place, too."""

    def has_data(self) -> bool:
        """What setuptools' editable installs ask for, and its own distributions lack."""
        return self.has_data_files()


setuptools.setup(cmdclass={"bdist_wheel": PlatformWheel, "build_py": Modules}, distclass=Distribution)
