"""What pyproject.toml cannot say: one wheel a platform, as at the project's root."""

import setuptools
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py


class PlatformWheel(bdist_wheel):
    """The compiled library is loaded by ctypes, and so serves every Python."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


class Modules(build_py):
    """All modules but this one."""

    def find_package_modules(self, package: str, package_dir: str) -> list[tuple[str, str, str]]:
        return [one for one in super().find_package_modules(package, package_dir) if one[1] != "setup"]


setuptools.setup(cmdclass={"bdist_wheel": PlatformWheel, "build_py": Modules})
