# Tandem in NVIDIA's Triton container for TensorRT-LLM: serves deployments/tensorrt_llm/, and builds engines of build/recipes/.
#   docker build -f build/docker/tensorrt_llm.Dockerfile -t tandem:tensorrt_llm .
#   docker run --gpus all --network host --ipc host --ulimit memlock=-1 --ulimit stack=67108864 \
#     --device /dev/infiniband -v /models:/models -v /engines:/engines tandem:tensorrt_llm \
#     tandem serve deployments/tensorrt_llm/llama-3.1-8b.toml
# 26.04 to 26.07 hold TensorRT-LLM 1.2.1, the last one that builds engines.
ARG BASE=nvcr.io/nvidia/tritonserver:26.07-trtllm-python-py3

FROM ${BASE}
# pip's own settings: where it finds packages and which certificates it trusts. For the build only.
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_FIND_LINKS
ARG PIP_CERT
WORKDIR /opt/tandem
# What the container has stays as it is: NVIDIA has tried these versions with each other. All else that Tandem needs to serve
# with TensorRT-LLM is small; PyTorch, NIXL and MPI are the container's own. tritonclient is for tandem's other commands.
RUN python3 -m pip list --format=freeze > /tmp/constraints.txt \
    && python3 -m pip install --no-cache-dir --disable-pip-version-check --constraint /tmp/constraints.txt \
        jinja2 msgspec numba numpy prometheus-client psutil pyzmq rich tokenizers typer "tritonclient[grpc]" \
    && rm /tmp/constraints.txt
COPY build/docker/container-ssh /usr/local/bin/
COPY model_repository/ model_repository/
COPY deployments/ deployments/
COPY build/recipes/ build/recipes/
COPY python_backends/ python_backends/
RUN python3 -m compileall -q python_backends \
    && printf '#!/usr/bin/env python3\nfrom tandem.cli import app\n\napp()\n' > /usr/local/bin/tandem \
    && chmod 0755 /usr/local/bin/tandem /usr/local/bin/container-ssh
# Ranks that MPI starts on other hosts find the package by this, too.
ENV PYTHONPATH=/opt/tandem/python_backends
EXPOSE 8000 8001 8002
CMD ["tandem", "serve", "deployments/tensorrt_llm/llama-3.1-8b.toml"]
