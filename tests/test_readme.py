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


def test_it_is_short_and_in_order():
    assert len(README.split()) <= 1700
    heads = re.findall(r"^## (.+)$", README, re.MULTILINE)
    assert heads == ["Run it", "What the run shows", "The formula", "Read these three files in this order", "Ablate α",
                     "The rest"]


@pytest.mark.parametrize("page", [*ROOT.glob("docs/*.md"), *ROOT.glob("*.md")], ids=lambda page: page.name)
def test_links_between_pages_exist(page):
    for target in re.findall(r"\]\((?!http)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_the_picture_of_the_house_names_every_file():
    house = (ROOT / "CONTRIBUTING.md").read_text()
    for folder in ("cql", "cql/engine", "cql/exact", "cql/analysis", "envs"):
        for path in (ROOT / folder).glob("*.py"):
            assert path.name == "__init__.py" or path.name in house, f"{folder}/{path.name}"


def test_every_named_test_exists():
    """The pages name tests as FILE::NAME, or ::NAME for a further one of a file named before."""
    names = {name for path in ROOT.glob("tests/*.py")
             for name in re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE)}
    for page in [*ROOT.glob("docs/*.md"), ROOT / "README.md"]:
        for name in re.findall(r"::(test_\w+)", page.read_text()):
            assert name in names, f"{page.name} names {name}"


def test_the_maths_page_explains_every_logged_metric():
    page = (ROOT / "docs/math.md").read_text()
    for name in METRICS:
        assert name in page, name
