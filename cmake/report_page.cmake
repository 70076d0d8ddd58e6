# Puts report.css and report.js into report.html.in and writes the page as a C++ string literal. @SUMMARY@ stays: the
# program puts the summary there.
file(READ ${FOLDER}/report.html.in page)
file(READ ${FOLDER}/report.css css)
file(READ ${FOLDER}/report.js script)
string(REPLACE "@CSS@" "${css}" page "${page}")
string(REPLACE "@SCRIPT@" "${script}" page "${page}")
file(WRITE ${OUT} "constexpr std::string_view kPage = R\"page(${page})page\";\n")
