"""A torch that has moved what is replaced is told apart from one that fails."""

import pytest

from tests.gpu_codegen.standins import MovedError, StandIn


@pytest.mark.parametrize(
    ("owner", "attribute", "name"),
    [
        ("torch.cuda", "gone", "torch.cuda.gone"),
        ("torch.gone", "is_available", "torch.gone.is_available"),
        ("torch.cuda:Gone", "is_available", "torch.cuda.Gone.is_available"),
    ],
)
def test_what_torch_has_moved_is_named(owner: str, attribute: str, name: str) -> None:
    with pytest.raises(MovedError, match=f"^{name} has moved, which was replaced because there is no device$"):
        StandIn(owner, attribute, None, "there is no device").install()
