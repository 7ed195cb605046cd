"""The docs name what there is, and only what there is."""

import re
import subprocess
import sys
from pathlib import Path

import kvtuner_core

ROOT = Path(__file__).parents[2]
DOCS = {name: (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md")}
GLOSSARY = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")


def test_the_docs_name_every_public_name():
    text = DOCS["ARCHITECTURE.md"] + DOCS["README.md"]
    missing = [name for name in kvtuner_core.__all__ if f"`{name}" not in text]
    assert not missing


def test_the_glossary_knows_the_vocabulary():
    for word in (
        "PrecisionPair",
        "QuantScheme",
        "KVPolicy",
        "nominal bits",
        "effective bits",
        "ErrorProfile",
        "pair pruning",
        "layer group",
        "Candidate",
        "Pareto front",
        "simulated",
        "packed",
        "reference",
        "prompt set",
        "run",
        "job",
    ):
        assert f"**{word}**" in GLOSSARY, word


def test_every_command_of_the_readme_exists():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    for name, text in DOCS.items():
        for target in re.findall(r"`make ([a-z-]+)`", text):
            assert target in targets, f"{name}: make {target}"
    helped = subprocess.run(
        [sys.executable, "-m", "kvtuner_core", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    for command in re.findall(r"python -m kvtuner_core ([a-z]+)", DOCS["README.md"]):
        assert command in helped


def test_every_local_link_leads_somewhere():
    for name, text in DOCS.items():
        for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
            assert (ROOT / link).exists(), f"{name}: {link}"


def test_the_readme_names_every_top_level_folder():
    for folder in ("app.py", "kvtuner_core", "pages", "kernels", "data", "tests"):
        assert folder in DOCS["README.md"]
