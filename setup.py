"""Ship the top-level settings.ini inside of the package, so that an installed wheel has it too; all else is in pyproject.toml."""
import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithSettings(build_py):
    def run(self):
        super().run()
        if not self.editable_mode: shutil.copy(Path(__file__).parent/'settings.ini', Path(self.build_lib)/'proxy_attention'/'settings.ini')


setup(cmdclass={'build_py': BuildWithSettings})
