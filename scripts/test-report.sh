#!/usr/bin/env bash
# Opens reports of `greta bisect` in headless Chromium, clicks through them and checks what they show.
# usage: scripts/test-report.sh [FILE.html...] [options of tools/click_report.py]
# Without arguments: the pages of the sample summaries (tests/bisect/summaries).
set -euo pipefail
source "$(dirname "$0")/lib.sh"

ensure_packages chromium chromium-driver fonts-dejavu-core python3
if [ $# -eq 0 ]; then
  build release bisect_tests
  "$ROOT/build/release/tests/bisect_tests" --gtest_filter=Report.PagesForTheBrowser --gtest_brief=1
  set -- "$ROOT"/build/release/reports/*.html
fi
python3 "$ROOT/tools/click_report.py" "$@"
