# Tandem on CPUs: the server, its engines, the demo model, and sshd for ranks, for docker-compose.yml. Needs no BuildKit.
#   docker build -f build/docker/cpu.Dockerfile -t tandem:cpu .
ARG BASE=debian:12-slim

FROM ${BASE} AS python
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 libpython3.11 \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/*
WORKDIR /opt/tandem

FROM python AS build
RUN apt-get update && apt-get install --yes --no-install-recommends ca-certificates python3-venv
# pip's own settings: where it finds packages (a CPU build of PyTorch, too) and which certificates it trusts. They stay
# in this stage; the image that is served does not know them.
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_FIND_LINKS
ARG PIP_CERT
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
# What changes seldom comes first, each step with no more of the sources than it reads.
COPY pyproject.toml ./
COPY python_backends/tandem/__init__.py python_backends/tandem/
RUN touch README.md && python3 -m venv .venv && .venv/bin/pip install -e .
COPY python_backends/tandem/errors.py python_backends/tandem/
COPY python_backends/tandem/engines/torch/config.py python_backends/tandem/engines/torch/
COPY build/demo_model.py build/
COPY build/conversion/ build/conversion/
RUN .venv/bin/python build/demo_model.py
COPY python_backends/tandem/triton/ python_backends/tandem/triton/
RUN .venv/bin/python -m tandem.triton.install

FROM python
# ssh starts the ranks of a group in other containers: keys and host keys come with the secrets, none is in the image.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends openssh-client openssh-server \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /etc/ssh/ssh_host_* \
    && install --directory /run/sshd
COPY build/docker/sshd_config build/docker/ssh_config /etc/ssh/
# Everything belongs to root; the server may write its run directory and /tmp, nothing else.
RUN useradd --uid 10001 --no-create-home --home-dir /tmp --password '*' --shell /bin/sh tandem \
    && install --directory --owner tandem --group tandem .tandem/run
COPY --from=build /opt/tandem/.venv/ .venv/
COPY --from=build /opt/tandem/.tandem/triton/ .tandem/triton/
COPY --from=build /opt/tandem/.tandem/models/ .tandem/models/
COPY model_repository/ model_repository/
COPY deployments/ deployments/
COPY python_backends/ python_backends/
COPY build/docker/healthcheck.py build/docker/
RUN python3 -m compileall -q python_backends
# Numba keeps the engines' compiled loops where it may write.
ENV PATH=/opt/tandem/.venv/bin:$PATH HOME=/tmp NUMBA_CACHE_DIR=/tmp/numba
USER tandem
EXPOSE 8000 8001 8002
CMD ["tandem", "serve", "deployments/local.toml", "--host", "0.0.0.0"]
