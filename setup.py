"""The README as PyPI shows it: its links lead to the repository. All else is in setup.cfg."""

import re
from pathlib import Path

from setuptools import setup

PLACE = "fm-diffusers/fm_diffusers"
PAGES, FILES = (
    f"https://github.com/{PLACE}/blob/main",
    f"https://raw.githubusercontent.com/{PLACE}/main",
)

readme = Path(__file__).with_name("README.md").read_text(encoding="utf-8")
readme = re.sub(r"(!\[[^\]]*\]\()(?!https?:|#)", rf"\g<1>{FILES}/", readme)
readme = re.sub(r"(\]\()(?!https?:|#)", rf"\g<1>{PAGES}/", readme)
setup(long_description=readme)
