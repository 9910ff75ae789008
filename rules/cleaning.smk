# Cleaning up: what takes much room and can be made again.


# The preprocessed data of trained networks; a training that needs them later makes them again.
rule free_preprocessed:
    log:
        "<logs>/free_preprocessed.log",
    conda:
        "../envs/panorgan.yaml"
    resources:
        mem_mb=run.memory,
        runtime=run.runtime,
    params:
        data=run.preprocessed,
    script:
        "../scripts/free_preprocessed.py"
