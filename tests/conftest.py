"""One thread, no network, one seed: what every test relies on."""

from __future__ import annotations

import ipaddress
import os
import socket

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

import pytest  # noqa: E402  (the environment has to be set before torch and transformers are imported)
import torch  # noqa: E402
from families import tiny as build_tiny  # noqa: E402

torch.set_num_threads(1)


class NetworkBlocked(OSError):
    """A test tried to leave the machine."""


def _is_local(family: int, address: object) -> bool:
    if family not in (socket.AF_INET, socket.AF_INET6):
        return True
    host = str(address[0]) if isinstance(address, tuple) else ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@pytest.fixture(scope="session", autouse=True)
def no_network():
    """Connecting to anything but this machine raises."""
    patch = pytest.MonkeyPatch()
    for name in ("connect", "connect_ex"):
        original = getattr(socket.socket, name)

        def guarded(self, address, original=original):
            if not _is_local(self.family, address):
                raise NetworkBlocked(f"tests run without network; something connects to {address}")
            return original(self, address)

        patch.setattr(socket.socket, name, guarded)
    yield
    patch.undo()


def pytest_addoption(parser):
    parser.addoption("--case", help="only the tests of this line of docs/reliability.md, such as A2")


def pytest_collection_modifyitems(config, items):
    number = config.getoption("--case")
    if number is not None:
        items[:] = [item for item in items if any(number in mark.args for mark in item.iter_markers("case"))]


@pytest.fixture(autouse=True)
def seed() -> int:
    """Every test starts from the same random state."""
    torch.manual_seed(0)
    return 0


@pytest.fixture
def tiny():
    """`tiny(family)`: a tiny model of a family and inputs that fit it (see families.py)."""
    return build_tiny
