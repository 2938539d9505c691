# The two commands on a bare machine:  docker build -t dual-mechanisms . && docker run --rm dual-mechanisms
# About 3 GB, most of it PyTorch. Another command: docker run --rm dual-mechanisms make test ARGS="-k scenes"
# To keep what is run: docker run --rm -v "$PWD/runs:/artifact/runs" dual-mechanisms make run
FROM python:3.11-slim
RUN apt-get update && apt-get install --yes --no-install-recommends make git && rm -rf /var/lib/apt/lists/*
WORKDIR /artifact
COPY . .
# PyTorch's builds for CPUs, a tenth of the size of those with CUDA; constraints.txt still names the version
ENV PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu PIP_NO_CACHE_DIR=1
RUN make .venv/.ready
CMD ["sh", "-c", "make run && make test"]
