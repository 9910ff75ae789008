"""How rules, scripts and packages hang together: habits that a reader relies on."""

import re
from pathlib import Path

import panorgan

REPOSITORY = Path(__file__).parents[2]
RULES = {path: path.read_text() for path in (REPOSITORY / "rules").glob("*.smk")}
SCRIPTS = {path: path.read_text() for path in (REPOSITORY / "scripts").glob("*.py")}
ORDER = (
    *("cli", "report", "stages", "run", "inference", "nnunet", "networks", "scoring", "fusing"),
    *("cases", "io", "config"),
)


def test_arrows_between_packages_point_down():
    """No package imports one that stands above it; see docs/design.md."""
    root = Path(panorgan.__file__).parent
    packages = {path.parent.name for path in root.glob("*/__init__.py")}
    assert packages == {*ORDER}
    upward = {
        (f"{package}/{path.name}", other)
        for package in ORDER
        for path in (root / package).rglob("*.py")
        for other in re.findall(r"^ *from panorgan\.(\w+)", path.read_text(), re.M)
        if other in ORDER and ORDER.index(other) < ORDER.index(package)
    }
    assert upward == set()


def test_a_package_says_in_a_sentence_what_it_is():
    for path in Path(panorgan.__file__).parent.rglob("__init__.py"):
        assert re.match(r'"""[A-Z].+?\.', path.read_text(), re.S), path


def test_what_a_rule_depends_on_stands_in_the_rule():
    for path, text in SCRIPTS.items():
        assert "snakemake.config" not in text, path


def test_each_script_is_some_rules_and_each_rules_script_is_there():
    used = {name for text in RULES.values() for name in re.findall(r"scripts/(\w+\.py)", text)}
    assert used == {path.name for path in SCRIPTS}


def test_rules_are_verbs_with_a_noun():
    names = [name for text in RULES.values() for name in re.findall(r"^ *rule (\w+):", text, re.M)]
    assert len(names) == len({*names}) > 20
    assert not [name for name in names if "_" not in name]


def test_paths_of_results_are_made_in_one_place():
    places = [*RULES, REPOSITORY / "Snakefile", *(REPOSITORY / "scripts").glob("*.py")]
    for path in places:
        lines = [line for line in path.read_text().splitlines() if "<logs>" not in line]
        found = [line for line in lines if re.search(r"results/|round-|seed-\{|/fusion/", line)]
        assert not found, path
