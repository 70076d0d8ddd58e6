#pragma once
// Standard output, where results go and nothing else.
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace greta::cli {

/// The reader of standard output is gone; the program ends quietly with status 0.
struct ClosedPipe {};

/// Adds to what will be written. Errors: ClosedPipe; greta::Error with the system's reason (a full disk).
void print(std::string_view text);
/// Writes what was printed. Errors as above.
void flush_output();
/// Prints a document with two spaces of indentation and a newline; bytes that are not UTF-8 become U+FFFD.
void print_json(const nlohmann::ordered_json& document);

/// Bytes of a text for people, on one line, in double quotes: control characters, quotes and bytes that are
/// not UTF-8 are escaped.
std::string quoted_text(std::string_view text);
/// "12.3 GB", "98.1 MB", "512 B": powers of 1,000.
std::string bytes_shown(double bytes);

/// An error as every command shows it: "greta: headline", then one indented line for each detail. Straight to
/// standard error, whatever the log's level.
void show_error(const std::string& headline, const std::vector<std::string>& details = {});

/// Refuses what cannot become a file, before any work is done for it: a missing or read-only folder, a
/// directory, a device or pipe (which a finished file would replace), and what is one of `inputs` by whatever
/// name. Empty inputs are none. Errors: the path and the reason.
void require_file_target(const std::string& path, const std::vector<std::string>& inputs);

}  // namespace greta::cli
