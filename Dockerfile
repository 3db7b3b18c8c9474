# The service with its model: docker build -t mlops:v1 .
#   --build-arg MODEL=demo       the model of configs/demo.yaml; any name of a file there. The default is Stable Diffusion 1.5
#   --build-arg PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu    torch without CUDA, and so no compiler; then the
#                                networks are built in as OpenVINO runs them
# pip also reads its other settings from the build's environment; none is set here.
#
# The base image is pinned by the digest of its index of platforms, so a rebuild of the same commit starts from the same files.
# It gets no security updates by itself. Renew it monthly, with what this prints, and read what changed:
#   docker buildx imagetools inspect python:3.11-slim-trixie --format '{{.Manifest.Digest}}'
# If it cannot be pulled, use another one: --build-arg PYTHON=REGISTRY/python:3.11-slim
ARG PYTHON=python:3.11.17-slim-trixie@sha256:45037981b62b34b44602584fccbc4d884d5f7dc92c7ee86bb38a698a79fe1e51
ARG MODEL=sd15-canny

# ------------------------------------------------------------------------------ the packages, installed by hash only
FROM ${PYTHON} AS packages
ARG PIP_EXTRA_INDEX_URL
WORKDIR /build
COPY requirements/*.txt requirements/
# A pip that supports hashes in constraints, in an environment that is not copied to the final image.
RUN python -m venv /opt/pip && /opt/pip/bin/pip install --no-cache-dir --require-hashes -r requirements/pip.txt
RUN python -m venv --without-pip /opt/venv \
    && /opt/pip/bin/pip --python /opt/venv/bin/python install --no-cache-dir --no-compile --only-binary :all: \
        --require-hashes -r requirements/image.txt
# xformers is of use only with CUDA, whose build of torch brings Triton.
RUN test ! -d /opt/venv/lib/python*/site-packages/triton \
    || /opt/pip/bin/pip --python /opt/venv/bin/python install --no-cache-dir --no-compile --only-binary :all: \
        --no-deps --require-hashes -r requirements/gpu.txt
# Compiled here, as the folder is read-only later; checked by hash, as layers may not keep
# modification times. Files that are not valid Python stay uncompiled.
RUN python -m compileall -qq -j 0 --invalidation-mode unchecked-hash /opt/venv/lib || true

# ------------------------------------------------------------------------------------------------ the configuration chosen
FROM ${PYTHON} AS chosen
WORKDIR /configs
COPY configs .
ARG MODEL
RUN test -f "$MODEL.yaml" || { echo "MODEL=$MODEL: there is no configs/$MODEL.yaml. Choose one of:" *.yaml >&2; exit 1; }
RUN mkdir /chosen && cp -R "$MODEL.yaml" $(test -d "$MODEL" && echo "$MODEL") /chosen \
    && ln -s "$MODEL.yaml" /chosen/served.yaml

# ------------------------------------------------------- the model: fetched again only if its configuration or the fetching code changes
FROM packages AS models
WORKDIR /opt/contour
COPY workers/__init__.py workers/config.py workers/console.py workers/document.py workers/fetch.py workers/folders.py workers/machine.py \
    workers/logs.py workers/schema.py workers/yamlfile.py workers/
COPY scheduler/__init__.py scheduler/messages.py scheduler/
COPY workers/weights/__init__.py workers/weights/checkpoints.py workers/weights/messages.py workers/weights/prepare.py \
    workers/weights/repository.py workers/weights/store.py workers/weights/
COPY workers/weights/sd15 workers/weights/sd15
COPY workers/engine/__init__.py workers/engine/config.py workers/engine/contract.py workers/engine/file_kinds.py \
    workers/engine/header.py workers/engine/model_checks.py workers/engine/samplers.py workers/engine/trials.py \
    workers/engine/weights.py workers/engine/
COPY --from=chosen /chosen configs
ARG MODEL
RUN mkdir models && CONTOUR_WORKERS__MODELS=/opt/contour/models /opt/venv/bin/python -m workers.fetch "configs/$MODEL.yaml"

# --------------------------------------------- the networks converted for OpenVINO, so that the first start is at full speed
FROM packages AS converted
WORKDIR /opt/contour
COPY --from=models /opt/contour/models models
COPY --from=chosen /chosen configs
COPY scheduler scheduler
COPY workers workers
ARG MODEL
# Not beside torch for CUDA, as a GPU does without them. What OpenVINO compiles of them depends on the CPU, so it is not built in.
RUN mkdir openvino && { test -d /opt/venv/lib/python*/site-packages/triton \
    || CONTOUR_WORKERS__MODELS=/opt/contour/models /opt/venv/bin/python -m workers.convert "configs/$MODEL.yaml" --to openvino --out openvino; }

# -------------------------------------------------------------------------------------------------------- the final image
FROM ${PYTHON}
COPY --from=packages /opt/venv /opt/venv
# libseccomp confines the process that finds edges. A C compiler stays in the image only where Triton does, which comes with torch
# for CUDA: Triton compiles its driver module (one file of C, with Python.h) when it first runs, and keeps it in the cache; it
# compiles kernels itself. On a CPU nothing is compiled, unless engine.speed.compile is true: that needs g++ as well.
RUN apt-get update && apt-get install --yes --no-install-recommends libseccomp2 \
        $(test -d /opt/venv/lib/python*/site-packages/triton && echo gcc libc6-dev) && rm -rf /var/lib/apt/lists/*
# Python's own modules are not compiled yet.
RUN python -m compileall -qq -j 0 --invalidation-mode unchecked-hash "$(python -c 'import os; print(os.path.dirname(os.__file__))')" || true
# Group 0, so that a platform that runs containers as an arbitrary user of the root group works.
RUN useradd --uid 10001 --gid 0 --no-create-home --home-dir /var/cache/contour --shell /usr/sbin/nologin contour \
    && install --directory --owner=contour --group=root --mode=0775 /var/cache/contour
COPY --from=models /opt/contour/models /opt/contour/models
COPY --from=converted /opt/contour/openvino /opt/contour/openvino
WORKDIR /opt/contour
COPY --from=chosen /chosen configs
COPY LICENSE .
COPY scheduler scheduler
COPY workers workers
COPY app app
RUN python -m compileall -q --invalidation-mode unchecked-hash app scheduler workers

# Nothing is fetched or reported, and nothing is written outside the volume. --gpus chooses the GPUs;
# "utility" is NVML. Compiled code is executed, so only the service's user can write to the cache: the service
# makes it, with mode 0700, in a volume that the whole group may write to.
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HOME=/var/cache/contour/private \
    HF_HUB_OFFLINE=1 \
    HF_HUB_DISABLE_TELEMETRY=1 \
    DO_NOT_TRACK=1 \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    OPENVINO_BUILT_IN_PATH=/opt/contour/openvino \
    CONTOUR_WORKERS__CACHE=/var/cache/contour/private \
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
    org.opencontainers.image.description="ControlNet image generation: a prompt and an image in, a new image with the same edges out" \
    org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.version="$VERSION" \
    contour.model="$MODEL"
