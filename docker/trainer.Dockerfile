# The trainer on GPUs: verl 0.9.1 with vLLM 0.24.0 and our plug-ins. From the repository's root (never built where this was
# written: there was neither an engine nor a GPU):
#   docker build -f docker/trainer.Dockerfile -t vtriune-trainer .
#   docker run --rm -it --gpus all --network host --ipc host -v /shared:/shared vtriune-trainer
# The versions of torch, transformers and vLLM are those that verl 0.9.1 asks for in its extra `vllm`. They are older than
# constraints.txt, whose set is the one tested here on CPUs; everything of ours holds for both (see pyproject.toml).
FROM nvidia/cuda:13.0.1-devel-ubuntu24.04
RUN apt-get update && apt-get install --yes --no-install-recommends python3.12-venv python3.12-dev git \
    && rm -rf /var/lib/apt/lists/*
RUN python3.12 -m venv /venv
ENV PATH=/venv/bin:$PATH PIP_NO_CACHE_DIR=1
WORKDIR /vtriune
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY src src
COPY recipes recipes
RUN pip install torch==2.11.0 setuptools wheel ninja packaging
# flash-attn is compiled against the torch above: some ten minutes.
RUN MAX_JOBS=8 pip install --no-build-isolation flash-attn==2.8.3
RUN pip install 'verl[vllm]==0.9.1' '.[verl]'
CMD ["bash"]
