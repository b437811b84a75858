"""What the tests of all subjects share."""

import pytest

from authority import Authority


@pytest.fixture(params=["io_uring", "epoll"])
def io_driver(request):
    """What the gateway's shards wait with: whoever asks for this is tested on both."""
    return request.param


@pytest.fixture(params=["plain", "tls"])
def authority(request, tmp_path):
    """Whose certificate the port has, or `None` for a port without TLS: whoever asks for this is tested with both."""
    return Authority(tmp_path) if request.param == "tls" else None
