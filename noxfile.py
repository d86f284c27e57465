"""Test sessions with the oldest and the newest dependencies: ``nox -s oldest``, ``nox -s newest``."""

import nox

nox.options.default_venv_backend = "uv"
nox.options.sessions = ["newest"]


@nox.session(python="3.10")
def oldest(session: nox.Session) -> None:
    """Run the tests with the lowest versions that setup.cfg declares."""
    session.install("--resolution", "lowest-direct", "-e", ".[test]")
    session.run("python", "-m", "pytest", *session.posargs)


@nox.session(python=["3.10", "3.11", "3.12", "3.13"])
def newest(session: nox.Session) -> None:
    """Run the tests with the newest versions."""
    session.install("-e", ".[test]")
    session.run("python", "-m", "pytest", *session.posargs)
