# The package with the versions of constraints.txt.
#
#   docker build -t grpo_lightning .
#   docker build -t grpo_lightning --build-arg EXTRAS='[vllm,liger,gpu-stats]' .      # for a GPU
#   docker run --rm -v "$PWD/runs:/opt/grpo_lightning/runs" grpo_lightning fit --config configs/quickstart.yaml
#   docker run --rm --gpus all --shm-size 8g -v "$PWD:/work" -w /work grpo_lightning fit --config run.yaml
FROM python:3.11-slim

# A compiler, since torch's and triton's kernels are compiled where they run.
RUN apt-get update && apt-get install -y --no-install-recommends build-essential git make && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/grpo_lightning
COPY pyproject.toml constraints.txt README.md LICENSE Makefile ./
COPY requirements requirements
COPY grpo_lightning grpo_lightning

ARG EXTRAS=""
RUN python -m pip install --no-cache-dir -c constraints.txt -e ".${EXTRAS}"

COPY assets assets
COPY configs configs
COPY examples examples

# As in the Makefile: threads of torch that have nothing to do sleep, and leave the cores to the rewards' processes.
ENV OMP_WAIT_POLICY=PASSIVE TOKENIZERS_PARALLELISM=false

ENTRYPOINT ["python", "-m", "grpo_lightning"]
CMD ["--help"]
