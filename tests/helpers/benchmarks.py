"""What `vmdump bench` shows, without measuring."""

from __future__ import annotations

from dataclasses import replace

from vmdump.operations.bench.bench import Benchmark, efficient
from vmdump.operations.bench.disk import DiskSpeed
from vmdump.operations.bench.forecast import Candidate, LevelForecast

PAGE = 4096


def candidate(speed: float, ratio: float, name: str = "zstd", level: int = 1) -> Candidate:
    return Candidate(
        format=f"kdump-{name}",
        codec=name,
        engine=name,
        level=level,
        default=level == 1,
        level_matters=True,
        speed=speed,
        slowest=speed * 0.9,
        fastest=speed * 1.1,
        ratio=ratio,
        pages=100,
        output_bytes=int(ratio * 1e9),
        seconds=1e9 / speed,
        limited_by="processor",
        efficient=False,
    )


def benchmark(points: list[tuple[float, float]]) -> Benchmark:
    rows = [
        candidate(speed, ratio, ("zlib", "lzo", "snappy", "zstd")[number % 4], number // 4 + 1)
        for number, (speed, ratio) in enumerate(points)
    ]
    rows = [replace(row, efficient=flag) for row, flag in zip(rows, efficient(points), strict=True)]
    return Benchmark(
        source="test",
        machine="A processor",
        threads=2,
        dump_level=1,
        page_size=PAGE,
        guest_bytes=1 << 30,
        data_bytes=1 << 30,
        sample_bytes=1 << 25,
        zero_share=0.25,
        scan_speed=1e9,
        disk=DiskSpeed(".", 1e9, 1e9, 1e9, 0.0, 1 << 28, 1 << 40),
        candidates=tuple(sorted(rows, key=lambda row: row.seconds)),
        missing={},
        levels=(
            LevelForecast(1, 700 << 20, rows[0]),
            LevelForecast(31, 90 << 20, replace(rows[0], output_bytes=40 << 20, seconds=0.12)),
        ),
    )
