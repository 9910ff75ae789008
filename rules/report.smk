# The report: one HTML file with scores, learning curves, overlays and what was fused from what.


rule write_report:
    input:
        manifest=rules.write_manifest.output.manifest,
        excluded=rules.write_manifest.output.excluded,
        suspects=rules.write_manifest.output.suspects,
        selection=expand("<results>/teacher/labels/{shard}.tsv", shard=run.train_shards),
        teacher_scores=rules.score_teacher.output.cases,
        teacher_summary=rules.score_teacher.output.summary,
        teacher=ancient(f"<results>/teacher/seed-{settings.teacher.seed}/model"),
        teacher_table=f"<results>/teacher/seed-{settings.teacher.seed}/model.tsv",
        stage1_composition=expand(
            "<results>/round-1/fusion/stage1/{shard}.composition.tsv",
            shard=run.train_shards,
        ),
        composition=expand(
            "<results>/round-1/fusion/stage2/{shard}.composition.tsv",
            shard=run.train_shards,
        ),
        conflicts=expand(
            "<results>/round-1/fusion/{stage}/{shard}.conflicts.tsv",
            stage=["stage1", "stage2"],
            shard=run.train_shards,
        ),
        specks=expand(
            "<results>/round-1/fusion/stage1/{shard}.specks.tsv",
            shard=run.train_shards,
        ),
        fused=expand(
            "<results>/round-1/fusion/stage2/{shard}.tsv", shard=run.train_shards
        ),
        fused_folders=ancient(
            expand("<results>/round-1/fusion/stage2/{shard}", shard=run.train_shards)
        ),
        students=ancient(
            expand(
                "<results>/round-1/student/{variant}/seed-{seed}/model",
                variant=settings.student.variants,
                seed=settings.student.seeds,
            )
        ),
        student_tables=expand(
            "<results>/round-1/student/{variant}/seed-{seed}/model.tsv",
            variant=settings.student.variants,
            seed=settings.student.seeds,
        ),
        scores=expand(
            "<results>/round-1/scores/{variant}/seed-{seed}/{split}/cases.csv",
            variant=settings.student.variants,
            seed=settings.student.seeds,
            split=["validation", "test"],
        ),
        summaries=expand(
            "<results>/round-1/scores/{variant}/seed-{seed}/{split}/summary.json",
            variant=settings.student.variants,
            seed=settings.student.seeds,
            split=["validation", "test"],
        ),
        predictions=expand(
            "<results>/round-1/predictions/{variant}/seed-{seed}/{shard}.tsv",
            variant=settings.student.variants,
            seed=settings.student.seeds,
            shard=run.evaluation_shards,
        ),
        prediction_folders=ancient(
            expand(
                "<results>/round-1/predictions/{variant}/seed-{seed}/{shard}",
                variant=settings.student.variants,
                seed=settings.student.seeds,
                shard=run.evaluation_shards,
            )
        ),
        efficiency=expand(
            "<results>/round-1/predictions/{variant}/seed-{seed}/{shard}.efficiency.tsv",
            variant=settings.student.variants,
            seed=settings.student.seeds,
            shard=run.evaluation_shards,
        ),
    output:
        report="<results>/report.html",
        picture="<results>/overlay.png",
        summary="<results>/summary.txt",
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
