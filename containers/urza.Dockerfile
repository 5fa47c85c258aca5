# The artifact store, without torch:  docker build -f containers/urza.Dockerfile -t esper-urza .
FROM python:3.11-slim AS build
WORKDIR /source
COPY requirements-urza.lock ./
RUN python -m venv /opt/esper \
 && /opt/esper/bin/pip install --quiet --no-cache-dir -r requirements-urza.lock
COPY pyproject.toml README.md LICENSE ./
COPY src ./src
RUN python -m venv /opt/building \
 && /opt/building/bin/pip wheel --quiet --no-cache-dir --no-deps --wheel-dir /wheels . \
 && /opt/esper/bin/pip install --quiet --no-cache-dir --no-deps /wheels/*.whl \
 && /opt/esper/bin/pip uninstall --quiet --yes pip

FROM python:3.11-slim
COPY --from=build /opt/esper /opt/esper
RUN mkdir /library && chown 10001:10001 /library
ENV PATH=/opt/esper/bin:$PATH PYTHONDONTWRITEBYTECODE=1 ESPER_URZA_HOST=0.0.0.0 ESPER_URZA_PORT=8000 ESPER_URZA_ROOT=/library
USER 10001:10001
WORKDIR /library
VOLUME /library
EXPOSE 8000
HEALTHCHECK --start-period=20s --interval=10s --timeout=3s \
  CMD ["python", "-c", "import os, urllib.request as u; u.urlopen(f'http://127.0.0.1:{os.environ[\"ESPER_URZA_PORT\"]}/ready', timeout=2)"]
ENTRYPOINT ["esper", "serve", "urza"]
CMD ["--json"]
