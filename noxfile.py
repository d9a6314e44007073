"""Tasks of developers: `nox -s test`, `nox -s lint`, `nox -s docs`, `nox -s benchmark`; `nox -l` lists all.

Each makes an environment of its own; `nox --no-venv -s lint` uses the one that is active.
"""

import nox

nox.options.sessions = ["lint", "types", "layers", "docs", "fast"]
nox.options.reuse_existing_virtualenvs = True
BENCHMARKS = ("bench_unet_step", "bench_guidance", "bench_generate")


def install(session: nox.Session) -> None:
    if session.virtualenv.is_sandboxed:
        session.install(".[dev]")


@nox.session
def test(session: nox.Session) -> None:
    """Run all tests."""
    install(session)
    session.run("python", "-m", "pytest", *session.posargs)


@nox.session
def fast(session: nox.Session) -> None:
    """Run the tests that take a few seconds at most each."""
    install(session)
    session.run("python", "-m", "pytest", "-m", "not slow and not browser", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, formatting, complexity and spelling."""
    install(session)
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("typos", ".")


@nox.session
def types(session: nox.Session) -> None:
    """Check types: strictly what users import, the rest for errors."""
    install(session)
    session.run("mypy")


@nox.session
def layers(session: nox.Session) -> None:
    """Check that no module imports upwards."""
    install(session)
    session.run("lint-imports")


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documents into site/; a broken link or an unknown name is an error."""
    install(session)
    session.run("mkdocs", "build", "--strict", "--quiet")


@nox.session
def benchmark(session: nox.Session) -> None:
    """Time the U-Net step, guidance and generation; each prints ratios against a yardstick of the same run."""
    install(session)
    for name in session.posargs or BENCHMARKS:
        session.run("python", f"tests/benchmarks/{name}.py")
