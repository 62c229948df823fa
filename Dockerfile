# One image with both programs; what it runs is the command.
FROM rust:1.95-bookworm AS build
RUN apt-get update && apt-get install -y --no-install-recommends cmake
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/src/target \
    cargo build --release --locked -p berth-proxy -p berth-registry && deploy/image.sh target/release /image

FROM scratch
COPY --from=build /image /
USER 65532:65532
ENV PATH=/usr/bin
CMD ["berth-proxy", "serve", "/etc/berth/config.json"]
