import jaxtyping
import pytest
import torch


@pytest.mark.skipif(jaxtyping.config.jaxtyping_disable, reason="JAXTYPING_DISABLE is set")
def test_a_wrong_shape_is_caught_at_the_call() -> None:
    from moce.stages.balance import chunks_of

    with pytest.raises(jaxtyping.TypeCheckError, match="features"):
        chunks_of(torch.zeros(3), rows=2, device=torch.device("cpu"))
