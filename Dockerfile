# panorgan with a trained model, run as challenges run it: docs/container.md.
FROM python:3.11.14-slim-bookworm AS build
# predict: for CPUs, without PyTorch; train: for GPUs, with PyTorch and its CUDA.
ARG EXTRA=predict
WORKDIR /panorgan
COPY pyproject.toml README.md LICENSE ./
COPY envs/constraints.txt envs/
COPY config config
COPY docs/demo_model docs/demo_model
COPY src src
RUN python -m venv /opt/panorgan \
    && /opt/panorgan/bin/pip install --no-cache-dir -c envs/constraints.txt ".[${EXTRA}]"
# Whether it works; what is compiled for it is kept.
RUN NUMBA_CACHE_DIR=/opt/panorgan/kernels /opt/panorgan/bin/panorgan predict --device cpu \
    -i docs/demo_model/phantom_0000.nii.gz -o labels -m docs/demo_model

FROM python:3.11.14-slim-bookworm
# The folder of the trained model, in this one.
ARG MODEL=docs/demo_model
ENV PATH=/opt/panorgan/bin:$PATH
COPY --from=build /opt/panorgan /opt/panorgan
COPY ${MODEL} /workspace/model
COPY container/predict.sh /workspace/
WORKDIR /workspace
CMD ["sh", "predict.sh"]
