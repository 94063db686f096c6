# syntax=docker/dockerfile:1
# The backend in one image, for CPUs or for GPUs:
#   docker build --build-arg TORCH=cpu -t unerase:cpu .
#   docker build --build-arg TORCH=cu130 -t unerase:cuda .
# It serves by itself (docker run --init is not needed), and as a Ray node under KubeRay, which gives a command of its own.
ARG PYTHON=3.11

FROM python:${PYTHON}-slim AS build
# The index of PyTorch's builds: cpu, or cu130 and its like; CUDA's libraries come with those as packages.
ARG TORCH=cpu
ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/unerase
ENV PATH=/opt/unerase/bin:$PATH
RUN pip install torch==2.13.0 --index-url "https://download.pytorch.org/whl/${TORCH}"
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY clients clients
COPY services services
# Versions are bounded in pyproject.toml; the artefact store on S3 is fsspec's.
# hadolint ignore=DL3013
RUN pip install '.[server,s3]'

FROM python:${PYTHON}-slim
# KubeRay's probes call bash and wget; tini hands signals on and reaps what Ray leaves behind.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --no-install-recommends -y bash libgomp1 tini wget \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 10001 unerase \
    && useradd --create-home --uid 10001 --gid 10001 unerase \
    && install --directory --owner unerase --group unerase /var/lib/unerase
COPY --from=build /opt/unerase /opt/unerase
# hadolint ignore=DL3064
ENV PATH=/opt/unerase/bin:$PATH \
    GOMP_SPINCOUNT=10000 \
    PYTHONUNBUFFERED=1 \
    RAY_USAGE_STATS_ENABLED=0 \
    RAY_worker_niceness=0 \
    TOKENIZERS_PARALLELISM=false
USER 10001:10001
WORKDIR /home/unerase
VOLUME /var/lib/unerase
EXPOSE 50051 9464
# With TLS, the client's variables (UNERASE_TLS_CA, UNERASE_TLS_SERVER_NAME) say how the backend is reached.
HEALTHCHECK --interval=10s --timeout=10s --start-period=120s \
    CMD ["unerase", "health"]
ENTRYPOINT ["tini", "--"]
# Listens within the container alone until it is given certificates and tokens, as docs/deployment.md shows.
CMD ["unerase", "serve", "--data-dir", "/var/lib/unerase"]
