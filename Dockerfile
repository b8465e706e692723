# yi-tune for a machine with an NVIDIA GPU. CUDA's libraries come with PyTorch; the driver is the host's, which the
# NVIDIA Container Toolkit hands in.
#   docker build -t yi-tune .
#   docker run --rm -it --gpus all --user "$(id -u)" -v "$PWD:/work" yi-tune train --name 小易 --author 李雷
# The page and the API answer inside the container; --network host lets this machine see them:
#   docker run --rm -it --gpus all --network host --user "$(id -u)" -v "$PWD:/work" yi-tune web
FROM python:3.11-slim-bookworm

# For a mirror of the package index: --build-arg PIP_INDEX_URL=... --build-arg UV_DEFAULT_INDEX=...
ARG PIP_INDEX_URL
ARG UV_DEFAULT_INDEX

WORKDIR /opt/yi-tune
# Before the source, so that a change of it builds no environment anew.
COPY requirements.lock ./
RUN pip install --no-cache-dir "$(sed -n 's/^\(uv==[^ ]*\).*/\1/p' requirements.lock)" \
    && uv pip sync --system --no-cache --require-hashes --compile-bytecode requirements.lock
COPY pyproject.toml README.md LICENSE ./
COPY src src
COPY configs configs
COPY data data
RUN uv pip install --system --no-cache --no-deps --no-build-isolation --compile-bytecode .

# Models, runs and exports lie in the folder that is mounted here, and so do the hubs' caches and log-ins. torch asks for
# the user's name, which a user of docker run --user has not.
WORKDIR /work
ENV HOME=/work \
    USER=yi-tune \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
ENTRYPOINT ["yi-tune"]
CMD ["--help"]
