"""Why a model cannot be shown images by vLLM, without vLLM."""

from __future__ import annotations

from importlib.metadata import version

import pytest
import transformers
from transformers import Qwen2_5_VLConfig

from grpo_lightning.generation.vllm.models import architecture_of, refuse_unshown, why_not_imported


def raised(source: str) -> ImportError:
    with pytest.raises(ImportError) as found:
        exec(source)
    return found.value


def test_a_package_that_is_missing_is_named():
    said = why_not_imported("vLLM 0.32.0's Toy", raised("import no_such_package.part"))
    assert said == "vLLM 0.32.0's Toy needs the package no_such_package, which is missing. Install it"


@pytest.mark.parametrize(
    "source", ["from transformers.models.llama import PixtralRotaryEmbedding", "import transformers.no_such_module"]
)
def test_a_package_that_is_there_and_does_not_fit_is_not_called_missing(source: str):
    """As LLaVA of vLLM 0.25.1, which imports a class that transformers 5.17 has renamed."""
    said = why_not_imported("vLLM 0.25.1's LlavaForConditionalGeneration", raised(source))
    assert "missing" not in said and "torchvision" not in said
    assert said.startswith(
        f"vLLM 0.25.1's LlavaForConditionalGeneration does not fit the installed transformers {transformers.__version__} ("
    )
    assert said.endswith("Install a newer vLLM, or an older transformers, or choose another model")


def test_a_package_is_called_what_pip_calls_it():
    installed = f"the installed pillow {version('pillow')} (cannot import name 'Nothing' from 'PIL'"
    said = why_not_imported("vLLM 0.32.0's Toy", raised("from PIL import Nothing"))
    assert installed in said and "an older pillow, or" in said
    assert "does not fit the installed json (" in why_not_imported("a", raised("from json import nothing"))


def test_what_a_package_says_itself_is_passed_on():
    said = why_not_imported("vLLM 0.32.0's Toy", ImportError("Toy requires the Torchvision\nlibrary."))
    assert said == "vLLM 0.32.0's Toy cannot be imported (Toy requires the Torchvision library.). Install what it needs"


def test_a_config_that_names_no_class_means_the_one_that_is_loaded():
    config = Qwen2_5_VLConfig(architectures=None)
    assert architecture_of(config) == "Qwen2_5_VLForConditionalGeneration"


def test_the_generator_is_named_with_the_reason():
    with pytest.raises(
        ValueError, match=r"model\.generator=VLLMServer cannot show images: too old\. Or set model\.gen"
    ):
        refuse_unshown("VLLMServer", Qwen2_5_VLConfig(), "too old")
