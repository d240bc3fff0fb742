# The service with the adapters of a folder, see docs/scale.md:
#   docker build -t vprompt .
#   docker run --rm -p 127.0.0.1:8000:8000 -e VPROMPT_TOKEN -v "$PWD/runs:/adapters:ro" -v vprompt:/home/vprompt/cache vprompt
FROM python:3.11-slim

WORKDIR /source
COPY pyproject.toml README.md LICENSE constraints.txt ./
COPY src src
# PyTorch for processors alone; without the index it is the one for CUDA, which is some gigabytes larger.
RUN pip install --no-cache-dir --constraint constraints.txt --extra-index-url https://download.pytorch.org/whl/cpu ".[serve]"

RUN useradd --uid 10001 --create-home vprompt && mkdir /home/vprompt/cache && chown vprompt /home/vprompt/cache
USER vprompt
WORKDIR /home/vprompt
# Weights and adapters from the Hub.
ENV HF_HOME=/home/vprompt/cache

EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=120s \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/health', timeout=4)"]
ENTRYPOINT ["vprompt", "serve", "--host", "0.0.0.0", "--port", "8000"]
CMD ["--adapters", "/adapters"]
