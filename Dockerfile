# For machines with an NVIDIA GPU and its container toolkit; the CUDA libraries come with torch's own wheels:
#   docker build -t dcdm .
#   docker run --rm --gpus all --shm-size 2g -v "$PWD:/work" dcdm score photos/ --run birds --preset sd15
# On a machine without a GPU, torch's wheels for CPUs save most of the space (docs/install.md):
#   docker build -t dcdm-cpu --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cpu .
FROM python:3.11-slim

ARG TORCH_INDEX=https://pypi.org/simple
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1 \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    HF_HOME=/work/.cache/huggingface

RUN pip install --index-url ${TORCH_INDEX} torch torchvision
COPY pyproject.toml README.md LICENSE /src/
COPY dcdm_cli /src/dcdm_cli
COPY export /src/export
RUN pip install /src && rm -rf /src

RUN useradd --create-home --uid 1000 dcdm && mkdir /work && chown dcdm /work
USER dcdm
WORKDIR /work
ENTRYPOINT ["dcdm"]
CMD ["doctor"]
