"""What the documents say holds: their Python runs, their links and names exist, and the README stays short."""

import importlib
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import yaml

from lsdm_diffusers import LSDMGuidedPipeline, __version__

from .conftest import ROOT

README = ROOT / "README.md"
README_WORDS = 800
COLUMNS = 119
STEPS = 2  # denoising steps of the guides' snippets in these tests
NOT_RUN = "<!-- not run: "

DOCUMENTS = sorted(
    [
        README,
        ROOT / "CONTRIBUTING.md",
        ROOT / "CHANGELOG.md",
        ROOT / "training" / "README.md",
        ROOT / "lsdm_diffusers" / "checkpoints" / "lung-ct-small" / "README.md",
        ROOT / "lsdm_diffusers" / "demo" / "examples" / "README.md",
        *(ROOT / "docs").rglob("*.md"),
    ]
)
# The changelog names modules that are gone.
CURRENT_DOCUMENTS = [document for document in DOCUMENTS if document.name != "CHANGELOG.md"]


def name_of(document: Path) -> str:
    return str(document.relative_to(ROOT))


def code_blocks(document: Path, language: str) -> list[tuple[str, str]]:
    """(the line before, code) of each fenced block of a language."""
    lines = document.read_text().split("\n")
    starts = [number for number, line in enumerate(lines) if line == f"```{language}"]
    return [
        (lines[start - 1] if start else "", "\n".join(lines[start + 1 : lines.index("```", start)]))
        for start in starts
    ]


def prose(document: Path) -> str:
    """The text without fenced code."""
    return re.sub(r"^```.*?^```$", "", document.read_text(), flags=re.DOTALL | re.MULTILINE)


def runnable(document: Path) -> list[str]:
    return [code for before, code in code_blocks(document, "python") if not before.startswith(NOT_RUN)]


@cache
def anchors(document: Path) -> set[str]:
    """The anchors of a document's headings, as the site makes them."""
    headings = re.findall(r"^#+ (.+)$", prose(document), flags=re.MULTILINE)
    return {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings}


def test_readme_is_short():
    words = len(README.read_text().split())
    assert words <= README_WORDS, f"README.md has {words} words, but at most {README_WORDS} are allowed."


def test_readme_commands_are_the_ones_that_ci_runs():
    commands = {before: code for before, code in code_blocks(README, "bash") if before.startswith("<!-- command: ")}
    assert commands == {
        "<!-- command: generate -->": "pip install . && lsdm-generate",
        "<!-- command: test -->": 'pip install ".[dev]" && python -m pytest',
    }


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_lines_fit(document):
    """Rows of tables cannot be broken, and metadata is written by a library."""
    text = re.sub(r"\A---\n.*?\n---\n", "", document.read_text(), flags=re.DOTALL)
    long = [line for line in text.split("\n") if len(line) > COLUMNS and not line.startswith("|")]
    assert not long


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_links_and_pictures_exist(document):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(document)):
        if re.match(r"https?:|mailto:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (document.parent / path).resolve() if path else document
        assert file.exists(), f"{name_of(document)} links to {target}, which does not exist."
        if anchor:
            assert anchor in anchors(file), f"{name_of(document)} links to {target}, but there is no such heading."


@pytest.mark.parametrize("document", CURRENT_DOCUMENTS, ids=name_of)
def test_modules_and_names_exist(document):
    text = document.read_text()
    # names that a document gives with their module, in prose, in code and as a directive of the API pages
    for dotted in set(re.findall(r"\blsdm_diffusers(?:\.\w+)+", text)):
        parts = dotted.split(".")
        for length in range(len(parts), 0, -1):
            try:
                found = importlib.import_module(".".join(parts[:length]))
            except ModuleNotFoundError:
                continue
            break
        for attribute in parts[length:]:
            assert hasattr(found, attribute), f"{name_of(document)} names {dotted}, which does not exist."
            found = getattr(found, attribute)


@pytest.mark.parametrize("document", CURRENT_DOCUMENTS, ids=name_of)
def test_files_of_the_repository_exist(document):
    """Paths in code type that start at the top of the repository, such as `training/evaluate.py`."""
    folders = "lsdm_diffusers|training|tests|examples|hub_cards|demo|docs"
    for path in set(re.findall(rf"(?<![\w/.-])(?:{folders})/[\w./*-]+", document.read_text())):
        path = path.rstrip(".")
        assert list(ROOT.glob(path)), f"{name_of(document)} names {path}, which does not exist."


@pytest.mark.parametrize("document", CURRENT_DOCUMENTS, ids=name_of)
def test_flags_of_scripts_exist(document):
    """Each flag of a command of training/ is one that the script knows."""
    for _, code in code_blocks(document, "bash"):
        for command in code.replace("\\\n", " ").split("\n"):
            script = re.search(r"(?:training|hub_cards|tests/benchmarks)/[\w/-]+\.py", command)
            if script is None:
                continue
            # the scripts' parsers get many of their flags from the package
            sources = [ROOT / script[0], *(ROOT / "lsdm_diffusers").rglob("*.py")]
            known = "\n".join(source.read_text() for source in sources)
            for flag in re.findall(r"--([\w-]+)", command[script.end() :]):
                name = flag.removeprefix("no-")
                assert f'"--{name}"' in known, f"{name_of(document)} gives {script[0]} the flag --{flag}."


def test_every_page_is_in_the_navigation_and_exists():
    text = re.sub(r"!!python\S+", "", (ROOT / "mkdocs.yml").read_text())

    def pages(entries):
        for entry in entries:
            if isinstance(entry, str):
                yield entry
            else:
                for value in entry.values():
                    yield from [value] if isinstance(value, str) else pages(value)

    named = set(pages(yaml.safe_load(text)["nav"]))
    assert named == {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}


def test_every_picture_of_the_site_is_used():
    pictures = {path for suffix in ("png", "jpg", "svg") for path in (ROOT / "docs").rglob(f"*.{suffix}")}
    used = {
        (document.parent / target).resolve()
        for document in DOCUMENTS
        for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text())
    }
    assert pictures <= used


def test_citation_and_changelog_know_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == __version__
    assert f"## [{__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_issue_templates_speak_of_clinical_use():
    templates = [path for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml") if path.stem != "config"]
    assert len(templates) == 2
    for template in templates:
        yaml.safe_load(template.read_text())
        assert "not for clinical use" in template.read_text()


def run_snippets(document: Path) -> None:
    """All Python of a document, block after block as a reader would type it."""
    names: dict[str, object] = {}
    for code in runnable(document):
        exec(compile(code, name_of(document), "exec"), names)


@pytest.mark.slow
def test_readme_snippet_runs_as_it_is_copied(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert runnable(README)
    run_snippets(README)
    assert (tmp_path / "ct.png").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("document", [path for path in DOCUMENTS if path != README and runnable(path)], ids=name_of)
def test_snippets_run(document, tmp_path, monkeypatch):
    """With few steps: the guides' own numbers are for pictures worth looking at."""
    call = LSDMGuidedPipeline.__call__

    def few_steps(self, *arguments, **options):
        return call(self, *arguments, **{**options, "num_inference_steps": STEPS})

    monkeypatch.setattr(LSDMGuidedPipeline, "__call__", few_steps)
    monkeypatch.chdir(tmp_path)
    run_snippets(document)


@pytest.mark.slow
def test_the_site_builds_strictly(tmp_path):
    pytest.importorskip("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    pages = {path.parent.name: path.read_text() for path in (tmp_path / "site" / "api").rglob("index.html")}
    assert "nodule_features" in pages["pipelines"]
    for name, page in pages.items():
        assert "<blockquote>\n<blockquote>" not in page, f"A doctest of the page api/{name} is shown as a quotation."
