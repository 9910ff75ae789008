# Cleaning up: what takes much room and can be made again.


# The preprocessed data of trained networks; a training that needs them later makes them again.
rule free_preprocessed:
    log:
        text="<logs>/free_preprocessed.log",
        problems="<logs>/free_preprocessed.problems.tsv",
    conda:
        "../envs/panorgan.yaml"
    threads: 1
    resources:
        gpu=0,
        mem_mb=1000,
        runtime=60,
    params:
        data=run.preprocessed,
    script:
        "../scripts/free_preprocessed.py"
