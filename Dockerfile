# SLAM, relocalization and the map service on a CPU. The network Reloc3r (PyTorch) is left out.
#   docker build -t reloc3r-slam .
#   docker run --rm -v "$PWD:/data" reloc3r-slam run film.mp4 -o runs/film
FROM python:3.12-slim

WORKDIR /app
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY relocalizer relocalizer
COPY slam slam
COPY configs configs
RUN pip install --no-cache-dir --constraint constraints.txt '.[viewer,serve,heif,ros]' \
    && useradd --create-home --uid 1000 slam

USER 1000
WORKDIR /data
ENV OPENBLAS_NUM_THREADS=1
ENTRYPOINT ["slam"]
CMD ["--help"]
