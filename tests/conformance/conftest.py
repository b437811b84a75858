"""What the tests of all subjects share."""

import pytest


@pytest.fixture(params=["io_uring", "epoll"])
def io_driver(request):
    """What the gateway's shards wait with: whoever asks for this is tested on both."""
    return request.param
