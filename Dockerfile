# One image for the operator, the router and the emulated engine. Non-root, works on a read-only root file system, needs no shell, and runs as
# any user: OpenShift gives a number that stands in no file, and group 0.
#   docker build -t multislo .          podman/buildah: buildah bud -t multislo .
# BASE is any image with Python 3.11 or later, its venv module, and a shell for the build alone. BUILD_BASE has the same Python at the same
# path, its headers and gcc; nothing of it gets into the image but the libraries that it compiles.
ARG BASE=python:3.11-slim
ARG BUILD_BASE=python:3.11

# What requirements.lock pins, and nothing else. This stage and its layer change with the lock file alone.
FROM ${BASE} AS dependencies
COPY requirements.lock /src/
# A name for the user that is ours. Its group is 0, as on OpenShift: a Secret's file that is mounted 0440 belongs to it.
RUN echo 'multislo:x:65532:0::/tmp:/usr/sbin/nologin' >>/etc/passwd
RUN --mount=type=cache,target=/root/.cache/pip \
    python3 -m venv /opt/multislo \
 && /opt/multislo/bin/python -m pip install --quiet --disable-pip-version-check --no-compile --require-hashes -r /src/requirements.lock \
 && /opt/multislo/bin/python -c "import site; open(site.getsitepackages()[0] + '/multislo.pth', 'w').write('/app\n')" \
 && find /opt/multislo/lib -type d -name tests -prune -exec rm -rf {} + \
 && /opt/multislo/bin/python -m compileall -q -j 0 --invalidation-mode unchecked-hash /opt/multislo/lib

# Our own code as a wheel, its hot modules compiled (docs/compiled.md). COMPILE=0 leaves all of it Python.
FROM ${BUILD_BASE} AS wheel
COPY --from=dependencies /opt/multislo /opt/multislo
COPY requirements-build.lock /src/
RUN --mount=type=cache,target=/root/.cache/pip \
    /opt/multislo/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r /src/requirements-build.lock
COPY pyproject.toml hatch_build.py README.md LICENSE /src/
COPY cli /src/cli
COPY crds /src/crds
COPY profiles /src/profiles
COPY engine /src/engine
COPY router /src/router
COPY operator /src/operator
COPY simulator /src/simulator
COPY bench /src/bench
ARG COMPILE=1
RUN MULTISLO_COMPILE=${COMPILE} /opt/multislo/bin/python -m pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation \
    --wheel-dir /wheel /src

# A layer of a few megabytes. Its byte code is made here, because a read-only root cannot keep what Python compiles.
FROM dependencies AS code
COPY --from=wheel /wheel /wheel
RUN /opt/multislo/bin/python -m pip install --quiet --disable-pip-version-check --no-compile --no-deps --target /app /wheel/*.whl \
 && /opt/multislo/bin/python -m compileall -q -j 0 --invalidation-mode unchecked-hash /app

FROM ${BASE}
ARG VERSION=0.1.0
LABEL org.opencontainers.image.title="multislo" \
      org.opencontainers.image.description="Serve one LLM to users with different latency needs on one GPU fleet: operator, router, emulated engine" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}"
COPY --from=dependencies /etc/passwd /etc/
COPY --from=dependencies /opt/multislo /opt/multislo
COPY --from=code /app /app
# HOME and matplotlib's cache would lie on the read-only root; nothing that a pod runs draws.
ENV PATH=/app/bin:/opt/multislo/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp
WORKDIR /
USER 65532:0
ENTRYPOINT ["multislo"]
CMD ["--help"]
