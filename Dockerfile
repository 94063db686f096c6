# The backend in one image: `docker run -p 127.0.0.1:50051:50051 IMAGE`.
# TORCH_INDEX chooses the build of torch: .../whl/cpu (default) or .../whl/cu130.
FROM python:3.11-slim

ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu

# KubeRay's probes call bash and wget.
RUN apt-get update \
    && apt-get install --no-install-recommends -y bash wget \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 10001 unerase

WORKDIR /opt/unerase
RUN python -m pip install --no-cache-dir torch==2.13.0 --index-url "${TORCH_INDEX}"
COPY pyproject.toml README.md LICENSE ./
COPY clients clients
COPY services services
RUN python -m pip install --no-cache-dir '.[server]' \
    && install -d -o unerase -g unerase /var/lib/unerase

USER unerase
ENV RAY_USAGE_STATS_ENABLED=0 \
    GOMP_SPINCOUNT=10000 \
    PYTHONUNBUFFERED=1
VOLUME /var/lib/unerase
EXPOSE 50051 9464
HEALTHCHECK --interval=10s --timeout=5s --start-period=90s \
    CMD ["unerase", "models", "--json"]
# The container's own network is the fence here; publish the port on loopback or behind TLS only.
CMD ["unerase", "serve", "--host", "0.0.0.0", "--port", "50051", "--metrics-port", "9464", "--data-dir", "/var/lib/unerase", "--allow-insecure-bind"]
