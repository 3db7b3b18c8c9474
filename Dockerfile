# The service with its model: docker build -t mlops:v1 .
#   --build-arg MODEL=demo       the model of configs/demo.yaml; any name of a file there. The default is Stable Diffusion 1.5
#   --build-arg PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu    torch without CUDA
# pip takes its other settings from the build's environment as well: none is written down here.
ARG MODEL=sd15-canny

# ------------------------------------------------------------------------------ what is installed, by hash and nothing else
FROM python:3.11-slim AS packages
ARG PIP_EXTRA_INDEX_URL
WORKDIR /build
COPY requirements/*.txt requirements/
# A pip that knows hashes in constraints, in an environment that stays behind.
RUN python -m venv /opt/pip && /opt/pip/bin/pip install --no-cache-dir --require-hashes -r requirements/pip.txt
COPY requirements.txt .
RUN python -m venv --without-pip /opt/venv \
    && /opt/pip/bin/pip --python /opt/venv/bin/python install --no-cache-dir --no-compile --only-binary :all: \
        --require-hashes -r requirements.txt
# Compiled here, as nobody may write there later; by hash, as layers need not keep times. What is no Python stays as it is.
RUN python -m compileall -qq -j 0 --invalidation-mode unchecked-hash /opt/venv/lib || true

# ------------------------------------------------------------------------------------------------ the configuration chosen
FROM python:3.11-slim AS chosen
WORKDIR /configs
COPY configs .
ARG MODEL
RUN test -f "$MODEL.yaml" || { echo "MODEL=$MODEL: there is no configs/$MODEL.yaml. Choose one of:" *.yaml >&2; exit 1; }
RUN mkdir /chosen && cp -R "$MODEL.yaml" $(test -d "$MODEL" && echo "$MODEL") /chosen \
    && ln -s "$MODEL.yaml" /chosen/served.yaml

# ------------------------------------------------------- the model: made anew only with its configuration, or what fetches it
FROM packages AS models
WORKDIR /opt/contour
COPY workers/__init__.py workers/config.py workers/document.py workers/fetch.py workers/
COPY scheduler/__init__.py scheduler/messages.py scheduler/
COPY workers/fetching workers/fetching
COPY workers/engine/__init__.py workers/engine/ahead.py workers/engine/architecture.py workers/engine/config.py \
    workers/engine/contract.py workers/engine/timing.py workers/engine/weights.py workers/engine/
COPY --from=chosen /chosen configs
ARG MODEL
RUN mkdir models && CONTOUR_WORKERS__MODELS=/opt/contour/models /opt/venv/bin/python -m workers.fetch "configs/$MODEL.yaml"

# ------------------------------------------------------------------------------------------------------------ what is served
FROM python:3.11-slim
# Triton compiles a launcher in C for each kernel, inductor what it leaves to the CPU. Python's own modules come uncompiled.
RUN apt-get update && apt-get install --yes --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
RUN python -m compileall -qq -j 0 --invalidation-mode unchecked-hash "$(python -c 'import os; print(os.path.dirname(os.__file__))')" || true
# Group 0, so that a platform that gives containers users of its own choice need only keep them in root's group.
RUN useradd --uid 10001 --gid 0 --no-create-home --home-dir /var/cache/contour --shell /usr/sbin/nologin contour \
    && install --directory --owner=contour --group=root --mode=0775 /var/cache/contour
COPY --from=packages /opt/venv /opt/venv
COPY --from=models /opt/contour/models /opt/contour/models
WORKDIR /opt/contour
COPY --from=chosen /chosen configs
COPY LICENSE .
COPY scheduler scheduler
COPY workers workers
COPY app app
RUN python -m compileall -q --invalidation-mode unchecked-hash app scheduler workers

# Nothing is fetched or reported, and nothing is written outside the volume. Which GPUs there are is for --gpus to say;
# "utility" is NVML.
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HOME=/var/cache/contour \
    HF_HUB_OFFLINE=1 \
    HF_HUB_DISABLE_TELEMETRY=1 \
    DO_NOT_TRACK=1 \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    CONTOUR_WORKERS__CACHE=/var/cache/contour \
    CONTOUR_WORKERS__MODELS=/opt/contour/models
USER 10001
VOLUME /var/cache/contour
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=300s --retries=3 \
    CMD ["python", "-m", "app.probe", "--config", "configs/served.yaml"]
ENTRYPOINT ["python", "-m", "app", "--config", "configs/served.yaml", "--host", "0.0.0.0"]

ARG MODEL
ARG VERSION=0.1.0
LABEL org.opencontainers.image.title="contour" \
    org.opencontainers.image.description="An image service: a prompt and a picture in, a new picture with the same edges out" \
    org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.version="$VERSION" \
    contour.model="$MODEL"
