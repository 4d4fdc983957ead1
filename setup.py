"""What pyproject.toml cannot say of wheels."""

import setuptools
from setuptools.command.bdist_wheel import bdist_wheel


class PlatformWheel(bdist_wheel):
    """One wheel a platform: the compiled library is loaded by ctypes, and so serves every Python."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


class Distribution(setuptools.Distribution):
    """An editable install puts data files (`sieve_start.pth`) in their place, too."""

    def has_data(self) -> bool:
        """What setuptools' editable installs ask for, and its own distributions lack."""
        return self.has_data_files()


setuptools.setup(cmdclass={"bdist_wheel": PlatformWheel}, distclass=Distribution)
