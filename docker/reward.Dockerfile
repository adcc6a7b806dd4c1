# A reward server. From the repository's root (never built where this was written: there was no engine for it):
#   docker build -f docker/reward.Dockerfile -t vtriune-reward .
#   docker run --rm -p 8192:8192 --user "$(id -u)" -v "$PWD/token.txt:/token.txt:ro" vtriune-reward \
#       --token-file /token.txt --workers 8
# --user: the token's file is to be readable by its owner only, who must then be the server's user.
FROM python:3.11-slim
WORKDIR /vtriune
ENV PIP_CONSTRAINT=/vtriune/constraints.txt PIP_NO_CACHE_DIR=1
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY src src
# The server imports no torch; the package asks for it. It goes first, by exact version.
RUN pip install torch==2.13.0 && pip install .
RUN useradd --create-home judge
USER judge
EXPOSE 8192
ENTRYPOINT ["vtriune", "serve", "--host", "0.0.0.0"]
CMD ["--help"]
