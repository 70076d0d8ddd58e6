#include "base/log.h"

#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>

#include <memory>

namespace greta::log {
namespace {

spdlog::logger& logger() {
  static const std::shared_ptr<spdlog::logger> instance = [] {
    auto made =
        std::make_shared<spdlog::logger>("greta", std::make_shared<spdlog::sinks::stderr_color_sink_mt>());
    made->set_pattern("greta: %v");
    made->flush_on(spdlog::level::debug);
    return made;
  }();
  return *instance;
}

}  // namespace

void set_level(Level level) {
  logger().set_level(level == Level::quiet     ? spdlog::level::err
                     : level == Level::verbose ? spdlog::level::debug
                                               : spdlog::level::info);
}

void write_error(std::string_view text) { logger().error(text); }
void write_warning(std::string_view text) { logger().warn("warning: {}", text); }
void write_info(std::string_view text) { logger().info(text); }
void write_debug(std::string_view text) { logger().debug(text); }

}  // namespace greta::log
