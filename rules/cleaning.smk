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
        data={
            f"{run.folder}/teacher/preprocessed": [
                f"{run.folder}/teacher/seed-{settings.teacher.seed}/model"
            ],
            **{
                f"{run.folder}/round-1/student/{labels}/preprocessed": [
                    f"{run.folder}/round-1/student/{variant}/seed-{seed}/model"
                    for variant, seed in students(settings)
                    if labels_of(variant) == labels
                ]
                for labels in sorted(
                    {labels_of(variant) for variant, _ in students(settings)}
                )
            },
        },
    script:
        "../scripts/free_preprocessed.py"
