"""The pretended CUDA device, compiled once and kept in the cache of pytest."""

import pytest
from cuda_rules import CudaRules
from pretended_cuda import library, obstacle, pretended_cuda


@pytest.fixture(scope="session")
def device(request, tmp_path_factory):
    if (reason := obstacle()) is not None:
        pytest.skip(reason)
    is_kept = request.config.pluginmanager.has_plugin("cacheprovider")
    folder = request.config.cache.mkdir("pretended_cuda") if is_kept else tmp_path_factory.mktemp("pretended_cuda")
    return library(folder)


@pytest.fixture
def cuda(device):
    """Returns a context in which "cuda" is a device without values, and every operation is checked."""

    class Pretended:
        def __init__(self, may_synchronize=lambda place: False):
            self.rules = CudaRules(may_synchronize)

        def __enter__(self):
            self.mode = pretended_cuda(device)
            self.mode.__enter__()
            self.rules.__enter__()
            return self.rules

        def __exit__(self, *error):
            self.rules.__exit__(*error)
            return self.mode.__exit__(*error)

    return Pretended
