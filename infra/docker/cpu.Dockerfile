# The CPU image: every node of a Ray cluster without GPUs.
#
# Never built in the workplace where it was written (no docker engine there): tests/unit/infra/test_dockerfiles.py
# reads it, and the build checks itself in the RUN below. From the repository root:
#
#   docker build -f infra/docker/cpu.Dockerfile -t registry.example.com/gptj-batch:0.1.0-ray2.60.0-cpu \
#       --build-arg VERSION=0.1.0 --build-arg REVISION="$(git rev-parse HEAD)" .
#
# To pin the base by digest, add what `docker buildx imagetools inspect docker.io/library/python:3.11.14-slim-bookworm`
# prints: --build-arg PYTHON_IMAGE=docker.io/library/python:3.11.14-slim-bookworm@sha256:...
ARG PYTHON_IMAGE=docker.io/library/python:3.11.14-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
ARG TORCH_VERSION=2.13.0
ARG RAY_VERSION=2.60.0
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PATH=/opt/venv/bin:$PATH
RUN python -m venv /opt/venv
# Without dependencies: those come from the package index below, at the versions of the constraints.
RUN pip install --no-deps --index-url "${TORCH_INDEX}" "torch==${TORCH_VERSION}"
WORKDIR /src
COPY infra/constraints.txt pyproject.toml README.md LICENSE ./
COPY gptj_batch gptj_batch
COPY pipelines pipelines
COPY jobs jobs
RUN pip install --constraint constraints.txt . \
    && pip check \
    && python -c "import ray, torch; print(ray.__version__, torch.__version__.split('+')[0], bool(torch.version.cuda))" \
    | grep -xF "${RAY_VERSION} ${TORCH_VERSION} False"

FROM ${PYTHON_IMAGE}
ARG VERSION=unknown
ARG REVISION=unknown
ARG TORCH_VERSION=2.13.0
ARG RAY_VERSION=2.60.0
LABEL org.opencontainers.image.title="gptj-batch, CPU" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      gptj-batch.ray="${RAY_VERSION}" \
      gptj-batch.torch="${TORCH_VERSION}"
# The engine compiles its kernels for the CPU that it finds; without a compiler it falls back to plain torch.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
RUN groupadd --gid 1000 gptj && useradd --uid 1000 --gid 1000 --create-home gptj
COPY --from=build /opt/venv /opt/venv
# HF_HUB_OFFLINE: checkpoints are staged before a run, never fetched by a replica.
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HF_HUB_OFFLINE=1 \
    RAY_USAGE_STATS_ENABLED=0
WORKDIR /home/gptj
# By number, since Kubernetes can only tell from a number that a user is not root.
USER 1000:1000
# KubeRay replaces this by `ray start`, in bash, and waits for it: no init process is needed.
CMD ["python", "-m", "jobs.run", "--help"]
