"""The README's promises that a machine can check."""

import re
from pathlib import Path

import pytest

from cql.metrics import METRICS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


NAMES = re.findall(r"\[`(\w+)`\]\((cql/[\w/]+\.py)\)", README)


@pytest.mark.parametrize("name, path", NAMES)
def test_links_into_the_code_name_what_is_there(name, path):
    assert re.search(rf"^ *(def|class) {name}\b", (ROOT / path).read_text(), re.MULTILINE)


def test_there_are_such_links_and_the_other_links_exist():
    assert len(NAMES) >= 10
    for target in re.findall(r"\]\((?!http)([^)#]+)", README):
        assert (ROOT / target).exists(), target


def test_the_two_commands_stand_as_they_are_run():
    ci = (ROOT / ".ci/run").read_text()
    for command in ("pip install -e . && python train.py", "pip install -e '.[test]' && pytest"):
        assert command in README and command in ci


def test_the_house_in_the_readme_is_the_house():
    for folder in ("cql", "cql/engine", "cql/exact", "cql/analysis", "cql/deploy", "envs"):
        for path in (ROOT / folder).glob("*.py"):
            if path.name != "__init__.py":
                assert path.name in README, f"{folder}/{path.name} is not in the README's picture of the house"


def test_the_maths_page_explains_every_logged_metric():
    page = (ROOT / "docs/math.md").read_text()
    for name in METRICS:
        assert name in page, name
