# The report: one HTML file with scores, overlays, what the labels are made of, learning curves and
# a methods text.


rule write_report:
    input:
        manifest=rules.write_manifest.output.manifest,
        excluded=rules.write_manifest.output.excluded,
        suspects=rules.write_manifest.output.suspects,
        corrected=rules.write_manifest.output.corrected,
        repaired=rules.write_manifest.output.repaired,
        selection=expand("<results>/teacher/labels/{shard}.tsv", shard=run.train_shards),
        teacher_scores=rules.score_teacher.output.cases,
        teacher_summary=rules.score_teacher.output.summary,
        teacher=ancient(f"<results>/teacher/seed-{settings.teacher.seed}/model"),
        teacher_table=f"<results>/teacher/seed-{settings.teacher.seed}/model.tsv",
        decisions=run.of_origins("decisions.tsv"),
        gate_cases=run.of_origins("cases.tsv"),
        gate_summaries=run.of_origins("summary.json"),
        pseudo_labels=run.of_pseudo_labels(".tsv"),
        pseudo_label_folders=ancient(run.of_pseudo_labels("")),
        composition=run.of_fused("{shard}.composition.tsv"),
        conflicts=run.of_fused("{shard}.conflicts.tsv"),
        specks=run.of_fused("{shard}.specks.tsv", but="stage2"),
        fused=run.of_fused("{shard}.tsv"),
        fused_folders=ancient(run.of_fused("{shard}")),
        students=ancient(run.of_arms("student", "model")),
        student_tables=run.of_arms("student", "model.tsv"),
        scores=run.of_arms("scores", "{split}/cases.csv"),
        lesions=run.of_arms("scores", "{split}/lesions.csv"),
        summaries=run.of_arms("scores", "{split}/summary.json"),
        predictions=run.of_arms("predictions", "{shard}.tsv"),
        prediction_folders=ancient(run.of_arms("predictions", "{shard}")),
        efficiency=run.of_arms("predictions", "{shard}.efficiency.tsv"),
    output:
        report=report(
            "<results>/report.html", caption="captions/report.rst", category="Report"
        ),
        picture=report(
            "<results>/overlay.png", caption="captions/overlay.rst", category="Report"
        ),
        summary=report(
            "<results>/summary.txt", caption="captions/summary.rst", category="Report"
        ),
    log:
        text="<logs>/write_report.log",
        problems="<logs>/write_report.problems.tsv",
    benchmark:
        "<benchmarks>/write_report.tsv"
    conda:
        "../envs/panorgan.yaml"
    threads: 1
    resources:
        gpu=0,
        mem_mb=4000,
        runtime=60,
    params:
        config=settings.model_dump(),
        tables=run.tables_digest(),
    script:
        "../scripts/write_report.py"
