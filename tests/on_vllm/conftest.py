"""These tests run where vLLM is installed: `make test-vllm` makes such an environment. Elsewhere they are skipped."""

import pytest

from gptj_batch.backends.vllm_install import installed


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    problem = installed().why_unusable()
    if problem is not None:
        for item in items:
            if item.path.is_relative_to(__file__.rpartition("/")[0]):
                item.add_marker(pytest.mark.skip(reason=problem.split(";")[0]))
