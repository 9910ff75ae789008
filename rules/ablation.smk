# The ablation: the scores of students that differ in the labels that they learnt from.


rule write_ablation:
    input:
        **run.ablation,
    output:
        table="<results>/ablation.tsv",
        page=report(
            "<results>/ablation.md",
            caption="captions/ablation.rst",
            category="Ablation",
        ),
        details="<results>/ablation.json",
    log:
        text="<logs>/write_ablation.log",
        problems="<logs>/write_ablation.problems.tsv",
    benchmark:
        "<benchmarks>/write_ablation.tsv"
    conda:
        "../envs/panorgan.yaml"
    threads: 1
    resources:
        gpu=0,
        mem_mb=4000,
        runtime=30,
    params:
        samples=settings.ablation.samples,
        tables=run.tables_digest(),
    script:
        "../scripts/write_ablation.py"
